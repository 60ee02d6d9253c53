"""A whole export: every series that fits the model, once, however often the run is killed and started again.

`export_index` finds the series, `ledger` says which are done, `leases` keep several runners apart, `run` does the rest.
The record in a series' folder of results is the only proof that it is done.
"""
