# Everything goes through .venv, which `make setup` makes and repairs. A sourced ROS 2 is used when there is one.
# Settings: ROS_DISTRO=kilted|jazzy  TORCH=cpu|cuda|none  PYTHON=python3.12  VENV=.venv  ARGS="..." (see docs/INSTALL.md)
VENV ?= .venv
ARGS ?=
PY := $(VENV)/bin/python
export VENV

.PHONY: help setup demo test lint docs bench clean distclean

help:
	@echo 'make setup   environment with ROS 2, simulator, model and tools; repairs a half-finished one'
	@echo 'make demo    a simulated Franka obeys a sentence; ARGS="--instruction ..." (instructvla demo --help)'
	@echo 'make test    all tests; ARGS="-k name"'
	@echo 'make lint    ruff and mypy'
	@echo 'make docs    API reference as HTML in build/api; ARGS="instructvla_ros.policy" for a part'
	@echo 'make bench   latency and throughput on this machine'
	@echo 'make clean   remove what was built; make distclean removes the environment too'

setup:
	@./scripts/setup.sh

demo: setup
	$(VENV)/bin/instructvla demo $(ARGS)

test: setup
	$(PY) scripts/run_tests.py $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m mypy

docs: setup
	$(PY) scripts/build_docs.py $(ARGS)

bench: setup
	$(VENV)/bin/instructvla bench $(ARGS)

clean:
	rm -rf build install log dist *.egg-info instructvla_ros/msg instructvla_ros/srv instructvla_ros/action
	rm -rf instructvla_ros/lib instructvla_ros/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f $(VENV)/instructvla.stamp

distclean: clean
	rm -rf $(VENV)
