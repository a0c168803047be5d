"""The gateway: a page and Hugging Face's JSON for whoever uses the data owner's machine, on the loopback interface."""
