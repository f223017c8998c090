# The peers' environments; the Makefile includes this file. Each is stamped only when its peer can be imported, so
# that an interrupted installation is started again. torch comes first, alone and at one exact version: no package
# after it can exchange it, because everything else is installed from a complete list without looking at dependencies.

PEER_TORCH ?= torch==2.13.0

.PHONY: peers
peers: .venv-scvi/.ready .venv-autoencodix/.ready .venv-multidgd/.ready

.venv-%/.ready: benchmarks/requirements-%.txt | $(READY)
	$(PY) -m venv --clear .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check $(PEER_TORCH)
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	.venv-$*/bin/python -c "import $*"
	touch $@

# multiDGD is not on a package index and pins libraries of 2022 that no supported Python has: its source at one commit
# runs with the versions of our own lock.
MULTIDGD ?= https://github.com/Center-for-Health-Data-Science/multiDGD

.venv-multidgd/.ready: requirements.lock | $(READY)
	$(PY) -m venv --clear .venv-multidgd
	.venv-multidgd/bin/python -m pip install --quiet --disable-pip-version-check $(PEER_TORCH)
	.venv-multidgd/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	git clone --quiet $(MULTIDGD) .venv-multidgd/source
	git -C .venv-multidgd/source checkout --quiet 3887a98
	PYTHONPATH=.venv-multidgd/source/src .venv-multidgd/bin/python -c "import multiDGD"
	touch $@
