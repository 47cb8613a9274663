"""All that knows Ray, run folders, logging and flags; one file a verb of the command line."""
