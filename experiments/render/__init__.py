"""Tables, figures and the HTML page of an experiment's rows."""
