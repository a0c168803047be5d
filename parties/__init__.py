"""The parties as processes: dealer, model owner, data owner and coordinator, and the connections between them."""
