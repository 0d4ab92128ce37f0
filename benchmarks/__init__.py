"""Measures the rows of the performance table, this server and its yardsticks in one run.

``python -m benchmarks`` runs everything, ``python -m benchmarks p1 p5 --quick`` two rows in a hurry. Nothing of the
product imports this package, and the wheel does not hold it.

How it is measured, so that figures mean something:

* the server is a process of its own, pinned to one core; what makes load and counts what arrives is pinned to another;
* whatever is compared runs in the same invocation, round by round in turn, so that a machine that gets slower under
  the run slows all of them; the figure of a row is the median of its rounds, the verdict where possible a ratio;
* a round is valid only if every frame that was sent has arrived, counted by parsing frame headers of all bytes; what is
  missing or too much fails the row;
* the load generator's own CPU share stands beside each figure: near 100 % it would be its own bottleneck.
"""
