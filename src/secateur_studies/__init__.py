"""Studies: experiments of publications, with our numbers next to the published ones.

A study is a package here: ``experiments`` has the jobs, ``tables`` turns their rows into tables and figures,
``published`` has the printed numbers, and ``study`` lists the trials and states the conclusion. `runner` runs
a study, and `registry` lists them all.
"""
