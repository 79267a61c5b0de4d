"""Records to one sentence: use this. The cheapest configuration that cannot be told apart from the best one.

``choose`` decides, ``words`` says it, ``command`` is ``harness recommend``.
"""
