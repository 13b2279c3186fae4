"""The steps from one version's tables to the next. They only add, so that neighbouring versions run side by side."""

from __future__ import annotations

from pathlib import Path

from agenthive_server.kernel.ports import StoreUnusable


def migrate(url: str) -> None:
    """Bring the database at a SQLAlchemy URL to this version's tables; does nothing when it is there already.

    Raises `StoreUnusable` when a newer version of Agent Hive has been at it. Blocks, and wants the database for itself.
    """
    # Imported here: a start with tables that are as they should be does without.
    import sqlalchemy
    from alembic import command, util
    from alembic.config import Config

    engine = sqlalchemy.create_engine(url)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                # The driver would commit before every statement about tables; so all of it is one transaction.
                connection.connection.dbapi_connection.isolation_level = None  # type: ignore[union-attr] # it is sqlite3's
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
    except util.CommandError as error:
        raise StoreUnusable(f"{engine.url} was used by a newer version of Agent Hive: {error}") from error
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise StoreUnusable(f"{engine.url} cannot be migrated: {error}") from error
    finally:
        engine.dispose()
