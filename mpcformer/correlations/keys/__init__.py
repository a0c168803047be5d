"""Short keys that expand to shares of a function of the opened number: of a point, of a sign, of an equality."""
