"""The schema on PostgreSQL: the same tables, columns and meanings as app.MIGRATIONS, which explains them."""

from typing import Final

CHANNEL: Final = "bistro92"
"""What a commit notifies, so that the other processes look into the log."""

MIGRATIONS: Final = (
    f"""
    -- Its row is locked first by every transaction that writes: that makes `seq` gapless, and gives it in commit order.
    CREATE TABLE ledger (
        one integer PRIMARY KEY CHECK (one = 1),
        epoch text NOT NULL,
        seq bigint NOT NULL,
        last_order_id bigint NOT NULL,
        counts json NOT NULL
    );
    INSERT INTO ledger VALUES (1, left(replace(gen_random_uuid()::text, '-', ''), 12), 0, 0, '{{}}');

    -- json, not jsonb: the document comes back byte for byte. COLLATE "C": text order is time order, and cheap.
    CREATE TABLE orders (
        id bigint PRIMARY KEY,
        status text COLLATE "C" GENERATED ALWAYS AS (body ->> 'status') STORED,
        table_name text COLLATE "C" GENERATED ALWAYS AS (body ->> 'table') STORED,
        source text COLLATE "C" GENERATED ALWAYS AS (body ->> 'source') STORED,
        external_id text COLLATE "C" GENERATED ALWAYS AS (body ->> 'external_id') STORED,
        created_at text COLLATE "C" GENERATED ALWAYS AS (body ->> 'created_at') STORED,
        fire_at text COLLATE "C" GENERATED ALWAYS AS (body ->> 'fire_at') STORED,
        ready_at text COLLATE "C" GENERATED ALWAYS AS (body ->> 'ready_at') STORED,
        body json NOT NULL
    );
    CREATE INDEX orders_by_status ON orders (status, id);           -- with the id, newest first, as SQLite's have it
    CREATE INDEX orders_by_table ON orders (table_name, id);
    CREATE INDEX orders_by_created ON orders (created_at);
    CREATE INDEX orders_by_source ON orders (source, id) WHERE source IS NOT NULL;
    CREATE UNIQUE INDEX orders_by_external ON orders (external_id, source) WHERE external_id IS NOT NULL;
    CREATE INDEX orders_due ON orders (fire_at) WHERE status = 'scheduled';
    CREATE INDEX orders_by_ready ON orders (ready_at) WHERE ready_at IS NOT NULL;

    CREATE TABLE order_stations (
        station text COLLATE "C" NOT NULL,
        order_id bigint NOT NULL REFERENCES orders (id),
        PRIMARY KEY (station, order_id)
    );

    CREATE TABLE events (
        seq bigint PRIMARY KEY,
        at text COLLATE "C" NOT NULL,
        type text NOT NULL,
        order_id bigint NOT NULL REFERENCES orders (id),
        actor text,
        changes json NOT NULL,
        body json NOT NULL,
        began timestamptz NOT NULL DEFAULT now()                    -- its transaction did: which one that was
    );
    CREATE INDEX events_by_order ON events (order_id);

    CREATE TABLE idempotency_keys (
        rowid bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,      -- SQLite has one by itself
        credential text COLLATE "C" NOT NULL,
        key text COLLATE "C" NOT NULL,
        fingerprint text NOT NULL,
        status integer NOT NULL,
        answer json NOT NULL,
        at text COLLATE "C" NOT NULL,
        UNIQUE (credential, key)
    );

    -- A group commit is one INSERT into this view, as on SQLite; the records are taken apart once.
    CREATE VIEW batch AS
        SELECT ''::text AS records, 0::bigint AS seq, 0::bigint AS last_order_id, '{{}}'::json AS counts, ''::text AS at
        WHERE false;
    CREATE FUNCTION commit_batch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        WITH record AS MATERIALIZED (
            SELECT *, (document ->> 'id')::bigint AS id FROM (
                SELECT seq, type, changes, status, "order" AS document, stations, actor, key
                FROM json_to_recordset(NEW.records::json) AS (
                    seq bigint, type text, changes json, status integer, "order" json, stations json, actor text,
                    key json
                )
            ) AS record
        ), saved_orders AS (
            INSERT INTO orders (id, body)
                SELECT DISTINCT ON (id) id, document FROM record WHERE seq IS NOT NULL ORDER BY id, seq DESC
                ON CONFLICT (id) DO UPDATE SET body = excluded.body
        ), saved_stations AS (
            INSERT INTO order_stations (station, order_id)
                SELECT station, id FROM record, json_array_elements_text(stations) AS station
                ON CONFLICT DO NOTHING
        ), saved_events AS (
            INSERT INTO events (seq, at, type, order_id, actor, changes, body)
                SELECT seq, NEW.at, type, id, actor, changes, document FROM record WHERE seq IS NOT NULL ORDER BY seq
        )
        INSERT INTO idempotency_keys (credential, key, fingerprint, status, answer, at)
            SELECT key ->> 0, key ->> 1, key ->> 2, status, document, NEW.at FROM record WHERE key ->> 1 IS NOT NULL;
        UPDATE ledger SET seq = NEW.seq, last_order_id = NEW.last_order_id, counts = NEW.counts;
        PERFORM pg_notify('{CHANNEL}', '');
        RETURN NEW;
    END $$;
    CREATE TRIGGER commit_batch INSTEAD OF INSERT ON batch FOR EACH ROW EXECUTE FUNCTION commit_batch();
    """,
    """
    CREATE TABLE users (
        username text COLLATE "C" NOT NULL,
        password text NOT NULL,
        role text NOT NULL,
        created_at text NOT NULL
    );
    CREATE UNIQUE INDEX users_by_name ON users (lower(username));   -- of ASCII, as SQLite's NOCASE
    CREATE TABLE tokens (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        hash text NOT NULL UNIQUE,
        name text NOT NULL,
        role text NOT NULL,
        is_session boolean NOT NULL,
        created_at text COLLATE "C" NOT NULL,
        expires_at text COLLATE "C"
    );
    """,
)
"""What takes a database from each version to the next; the table `schema_version` counts those that it has had."""

RECALL: Final = """
    SELECT 'ledger', epoch, seq::text, last_order_id::text, concat_ws(',', txid_current(), now()), counts FROM ledger
    UNION ALL SELECT 'key', credential, key, fingerprint, status::text, answer FROM idempotency_keys
        WHERE (credential, key) IN (SELECT value ->> 0, value ->> 1 FROM json_array_elements(:keys))
    UNION ALL SELECT 'order', id::text, NULL, NULL, NULL, body FROM orders
        WHERE id IN (SELECT value::text::bigint FROM json_array_elements(:ids))
    UNION ALL SELECT 'external', orders.id::text, source, external_id, NULL, body
        FROM json_array_elements(:externals) JOIN orders ON external_id = value ->> 1 AND source = value ->> 0
"""
"""What a commit needs to know, as app.RECALL asks for it; with the transaction's number and time, to ask for its
outcome by."""

OUTCOME: Final = "SELECT txid_status(:number)"
IN_LOG: Final = "SELECT 1 FROM events WHERE seq = :seq AND began = :began::text::timestamptz"
"""Whether the log has the first event of a transaction. A database that crashed gives the numbers of transactions that
left no trace to others, so that it may say `committed` of another one. To be asked afterwards, in a newer snapshot."""

NEWS: Final = """
    SELECT epoch, ledger.seq, news.seq, type, body FROM ledger
    LEFT JOIN LATERAL (SELECT seq, type, body FROM events WHERE seq > :after ORDER BY seq LIMIT :rows) AS news ON true
    ORDER BY news.seq
"""
"""Where the log stands, beside each of its next events; a row without an event where there is none."""
