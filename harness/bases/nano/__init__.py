"""``nano``, the shipped base model, a byte-level LLaMA of about 0.9 million parameters: its files and how to make them.

In the order of reading: ``recipe`` (architecture, optimiser, mixture), ``tokenizer``, ``text`` (what it learns from),
``training``, ``quality`` (the yardstick), and ``build``, which does it all and says how close the result is to the
shipped one.

The text is on every machine that has Python: the source and documentation of the standard library. A fifth of
the diet is UUID-shaped strings drawn at random, because a base that already knows what a UUID looks like, and
how to copy one, leaves a fine-tuning method only the memorising to do. The standard library differs between
Python versions, so a rebuild is close to the shipped model, not identical; ``BuildReport`` says how close.

What is not here: finding the shipped files (``harness.bases``) and the command line.
"""
