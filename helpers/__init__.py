"""Models, training and plumbing of the multi-omics workbook; import the module you need: `from helpers import datasets`."""
