"""Search spaces, one file a method: LABELLING (swept on stored features), TRAINING, and grids; keys are Config fields.

A second name of a grid is the one that the paper uses, such as K.
"""
