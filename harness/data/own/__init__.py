"""Data that users bring (``harness run --data``): found, understood, checked row by row, and split.

``locate`` finds the tables of a file, a folder or a hub id; ``columns`` says what each column is; ``rows`` checks every
value; ``splits`` says which rows train, choose and test. What a trial needs to do all this again stands in its recipe
(``recipe``). What is not here: tokens and scores, which are a task's (``harness_benchmarks.tasks.own``).
"""
