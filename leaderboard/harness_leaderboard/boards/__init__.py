"""Records to boards: plain dataclasses with everything that is known about one comparison, and no word for a reader."""
