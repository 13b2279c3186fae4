"""The store of the scaled-out profile: PostgreSQL, through asyncpg. Imported only where a store URL asks for it."""
