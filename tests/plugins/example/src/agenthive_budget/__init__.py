"""A plugin of Agent Hive: how many tasks a team may delegate a day."""
