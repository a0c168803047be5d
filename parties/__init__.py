"""The parties and the wire: dealer, model owner, data owner, coordinator."""
