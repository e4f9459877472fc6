# Two commands: `make demo` sets up and runs the embedded study, `make test` sets up and passes the tests.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo

.PHONY: demo test slow clean

demo: $(VENV)/.ready
	$(VENV)/bin/cask-eval demo $(DEMO)

test: $(VENV)/.ready
	$(VENV)/bin/python -m pytest -q -n 2

slow: $(VENV)/.ready
	$(VENV)/bin/python -m pytest -q -n 2 -m slow

# The constraints are installed first, so that torch is the pinned build before anything can ask for another.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(DEMO)
