"""From trials to records: what runs when and in which process."""
