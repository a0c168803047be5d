"""`mpcformer run`: a data owner orders a run of a program, on this machine or between the deployed parties."""
