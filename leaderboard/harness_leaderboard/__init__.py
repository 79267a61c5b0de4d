"""Records to leaderboard: statistics, HTML, Markdown, CSV and LaTeX.

A pure function of the records; imports no torch.
"""
