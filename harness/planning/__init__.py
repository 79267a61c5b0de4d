"""From a suite to trials: plug-ins found, budgets solved, published numbers matched."""
