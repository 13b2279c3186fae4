"""The hive in production: time series, alerts, service levels, anomalies, pools that follow the load, backups."""
