"""Run one job, on this machine or between machines, and write the folder of the run."""
