"""The shop's app, alone in its file: every module of the shop imports it and declares its own part on it."""

from streamlib import App

app = App("shop")
