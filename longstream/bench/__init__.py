"""`longstream bench`: every op and layer, every backend here, and real peers, measured in the same run.

registry.py says which cases there are and who competes in each. ops.py, layers.py, mixers.py, decoding.py and
training.py make the contestants; problems.py has the ops' inputs and exact results, peers.py imports other packages.
measure.py checks a contestant against its float64 oracle, then takes the time in turn with the others. run.py starts a
process for each number of threads (worker.py) and outlives its crashes. limits.py measures what the machine can do;
figures.py, report.py and plots.py say what came of it, command.py is the verb.
"""
