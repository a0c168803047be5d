"""Programs between the parties: `mpcformer run`."""
