"""What it costs, measured: ``make bench``, or ``python -m bench --help``.

Everything is real: database servers of our own (those of tests/, with their default durability), gunicorn with the
bare server, and clients and publishers in processes of their own. Times are of CLOCK_MONOTONIC, which all processes
of a host share. What must hold beside the figures (nothing lost, nothing twice, one order) is checked on every run:
a bench that breaks a promise fails, however fast it was.

A measurement is a module with ``run(options)``; it is named in ``__main__``. The children (client, publisher, reader)
are told what to do by JSON lines on their standard input, and answer on their standard output. So does load.c, whose
lines are words: it holds what Python could not, 10,000 polls with the headers of a browser.
"""
