"""Labels that change at every step: rules of HCD (neighbourhood, propagation, splitting) and of SNNet (positives)."""
