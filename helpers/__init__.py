"""Models, training and plumbing of the multi-omics workbook.

Import the module you need: `from helpers import datasets`.
"""
