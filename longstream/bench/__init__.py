"""`longstream bench`: every op and layer, every backend here, and real peers, measured in the same run.

registry.py says which cases there are and who competes in each. ops.py, layers.py, mixers.py, decoding.py and
training.py make the contestants; problems.py has the ops' inputs and exact results, peers.py imports other packages.
measure.py checks a contestant against its float64 oracle, then takes the time in turn with the others. run.py starts a
process for each number of threads (worker.py) and outlives its crashes. limits.py measures what the machine can do;
figures.py, report.py and plots.py say what came of it, command.py is the verb.

`longstream bench step` and `decode` time one model step by step. step_subject.py makes it, step_ours.py and
step_peers.py the rows; step_clock.py has the frame rate, step_run.py checks and times; step_limits.py, step_memory.py
and step_rollback.py measure what else there is to know; step_figures.py, step_report.py and step_plot.py say what came
of it, step_command.py is the verb.
"""
