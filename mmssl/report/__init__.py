"""The report: one HTML file that shows a run to people, from disk and without a network.

`mmssl.report.collect` reads what the run's folder says, `mmssl.report.looking` reads the data again
for features and clips, `mmssl.report.page` makes the page of what both found.
"""
