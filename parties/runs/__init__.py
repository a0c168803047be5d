"""One evaluation from checked input to a whole run folder, on this machine or between machines."""
