# The peers' environments; the Makefile includes this file. Each is stamped only when its peer can be imported, so
# that an interrupted installation is started again. torch comes first, alone and at one exact version: no package
# after it can exchange it, because everything else is installed from a complete list without looking at dependencies.
#
# `make peers` is for notebook 07: the workbook itself with scvi-tools, scib-metrics and Scanorama beside it,
#   .venv-peers/bin/python -m helpers.run 07 --profile real
# `make bench` needs the environments of autoencodix and multiDGD too.

PEER_TORCH ?= torch==2.13.0
PEER_PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: peers bench-peers
peers: .venv-peers/.ready
bench-peers: .venv-peers/.ready .venv-autoencodix/.ready .venv-multidgd/.ready

# Scanorama comes last and by itself: its annoy has no wheels, and without a C++ compiler notebook 07 names the method
# as skipped while all others run.
SCANORAMA := annoy==1.17.3 fbpca==1.0 geosketch==1.3 intervaltree==3.2.1 sortedcontainers==2.4.0 scanorama==1.7.4

.venv-peers/.ready: requirements.lock benchmarks/requirements-peers.txt | $(READY)
	$(PY) -m venv --clear .venv-peers
	.venv-peers/bin/python $(PEER_PIP) $(PEER_TORCH)
	.venv-peers/bin/python $(PEER_PIP) --no-deps -r requirements.lock
	.venv-peers/bin/python $(PEER_PIP) --no-deps -r benchmarks/requirements-peers.txt
	.venv-peers/bin/python $(PEER_PIP) --no-deps --no-build-isolation -e .
	.venv-peers/bin/python $(PEER_PIP) --no-deps $(SCANORAMA) || echo "no C++ compiler: everything but Scanorama is there" >&2
	.venv-peers/bin/python -c "import helpers.integration, scvi, scib_metrics"
	touch $@

.venv-autoencodix/.ready: benchmarks/requirements-autoencodix.txt | $(READY)
	$(PY) -m venv --clear .venv-autoencodix
	.venv-autoencodix/bin/python $(PEER_PIP) $(PEER_TORCH)
	.venv-autoencodix/bin/python $(PEER_PIP) --no-deps -r $<
	.venv-autoencodix/bin/python -c "import autoencodix"
	touch $@

# multiDGD is not on a package index and pins libraries of 2022 that no supported Python has: its source at one commit
# runs with the versions of our own lock.
MULTIDGD ?= https://github.com/Center-for-Health-Data-Science/multiDGD

.venv-multidgd/.ready: requirements.lock | $(READY)
	$(PY) -m venv --clear .venv-multidgd
	.venv-multidgd/bin/python $(PEER_PIP) $(PEER_TORCH)
	.venv-multidgd/bin/python $(PEER_PIP) --no-deps -r requirements.lock
	git clone --quiet $(MULTIDGD) .venv-multidgd/source
	git -C .venv-multidgd/source checkout --quiet 3887a98
	PYTHONPATH=.venv-multidgd/source/src .venv-multidgd/bin/python -c "import multiDGD"
	touch $@
