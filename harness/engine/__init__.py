"""One frozen model, many lanes: from a trial's adapters to its steps, its scores and what they cost."""
