"""Code that measures private inference or counts its cost: the model, its input and the runs of the engines."""
