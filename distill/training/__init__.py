"""The training loop, and what every recipe needs around it: data, device, processes, the run's folder, calibration."""
