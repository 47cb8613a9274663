"""Search spaces, one file a method: LABELLING (swept on stored features) and TRAINING; keys are Config fields."""
