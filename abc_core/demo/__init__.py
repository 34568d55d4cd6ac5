"""The retrieval demo: a picture, asked different things, retrieves different captions (the paper's Figure 1).

asking.py          `Demo`: a picture that is looked at, what it retrieves, and what it resembles
index.py           what can be found: texts or pictures, their vectors, and the few nearest to a query
examples.py        pictures to choose from, and new scenes
regions.py         the parts of a picture, and a colour on each
page.py parts.py   the page of ipywidgets, and what it is made of
figure.py          notebook 09's figure
serve.py           the page without the notebook: `python -m abc_core.demo.serve`, which `make demo` calls
"""
