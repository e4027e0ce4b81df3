"""Built-in recipes: one YAML file a method, with the profiles quick, standard and paper."""
