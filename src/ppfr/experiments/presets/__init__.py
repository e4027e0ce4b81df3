"""Built-in recipes of `ppfr compare`: which methods, trained and attacked how."""
