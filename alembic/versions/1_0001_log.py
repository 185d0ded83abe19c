"""The outbox, the log, and what is set aside.

On SQLite a trigger gives the positions, in the writer's own transaction; see legacy_poll/dialects/sqlite.py. It takes
only rows that are plainly fit, and only when no other row waits in the outbox; the sequencer does the rest.

Revision ID: 1_0001
"""

import uuid

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.dialects import mysql

revision = "1_0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
LONG = sa.Text().with_variant(mysql.LONGTEXT(), "mysql").with_variant(mysql.LONGTEXT(), "mariadb")
TIME = (
    sa.DateTime(timezone=True)
    .with_variant(mysql.TIMESTAMP(fsp=6), "mysql")
    .with_variant(mysql.TIMESTAMP(fsp=6), "mariadb")
    .with_variant(sa.Text(), "sqlite")
)
OPTIONS = {
    name + "_" + key: value
    for name in ("mysql", "mariadb")
    for key, value in (
        ("engine", "InnoDB"),
        ("row_format", "DYNAMIC"),
        ("charset", "utf8mb4"),
        ("collate", "utf8mb4_bin"),
    )
}
NOW = {
    "postgresql": "clock_timestamp()",
    "mysql": "CURRENT_TIMESTAMP(6)",
    "mariadb": "CURRENT_TIMESTAMP(6)",
    "sqlite": "(strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))",
}

# A text that may name a channel, a type or an id: {0} is the column, {1} the most characters. SQLite's functions end
# at a NUL character and its bytes go on, so both lengths are asked for.
NAME = (
    "({0} IS NOT NULL AND typeof({0}) = 'text' AND length({0}) BETWEEN 1 AND {1}"
    " AND length(CAST({0} AS BLOB)) = length({0}) AND {0} NOT GLOB '*[^A-Za-z0-9_.:/@~+=-]*')"
)

# The walk looks at each character: a sequence that is not UTF-8 is another one when it is written again. It is for
# short data only, since every step copies the rest; the sequencer judges what is longer and not ASCII.
TRIGGER = """
CREATE TRIGGER legacy_poll_sequence AFTER INSERT ON legacy_poll_outbox
WHEN NOT EXISTS (SELECT 1 FROM legacy_poll_outbox WHERE id <> NEW.id)
  AND {channel}
  AND (NEW.type IS NULL OR {type})
  AND (NEW.event_id IS NULL OR {event_id})
  AND typeof(NEW.data) = 'text'
  AND length(CAST(NEW.data AS BLOB)) <= coalesce(
    (SELECT value FROM legacy_poll_setting WHERE name = 'max_event_bytes'), 262144)
  AND instr(CAST(NEW.data AS BLOB), x'00') = 0
  AND length(NEW.data) - length(replace(replace(NEW.data, '[', ''), '{{', '')) <= 200
  AND (NEW.data NOT GLOB '*[^' || char(1) || '-' || char(127) || ']*' OR length(CAST(NEW.data AS BLOB)) <= 2000
    AND NOT EXISTS (
      WITH RECURSIVE walk(rest) AS (SELECT NEW.data UNION ALL SELECT substr(rest, 2) FROM walk WHERE rest <> '')
      SELECT 1 FROM walk WHERE rest <> '' AND char(unicode(rest)) <> substr(rest, 1, 1)))
  AND json_valid(NEW.data)
  AND (NEW.data NOT GLOB '*[0-9][.eE]*' OR NOT EXISTS (
    SELECT 1 FROM json_tree(NEW.data) WHERE type = 'real' AND abs(atom) > 1.7976931348623157e308))
BEGIN
  INSERT INTO legacy_poll_event (position, id, channel, type, data, published_at)
  SELECT head + 1, coalesce(NEW.event_id, {uuid}), NEW.channel, coalesce(NEW.type, 'message'), NEW.data,
    strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
  FROM legacy_poll_log
  WHERE NOT EXISTS (SELECT 1 FROM legacy_poll_event WHERE id = NEW.event_id);
  UPDATE legacy_poll_log SET head = head + 1
  WHERE EXISTS (SELECT 1 FROM legacy_poll_event WHERE position = legacy_poll_log.head + 1);
  DELETE FROM legacy_poll_outbox WHERE id = NEW.id;
END
""".format(
    channel=NAME.format("NEW.channel", 200),
    type=NAME.format("NEW.type", 200),
    event_id=NAME.format("NEW.event_id", 100),
    # A random UUID, version 4, variant 1.
    uuid="lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-'"
    " || substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)))",
)


def missing(kind, table, name=None):
    """Whether a step is yet to be done: where every statement commits by itself, an upgrade may have ended half-way."""
    if context.is_offline_mode():
        return True
    found = sa.inspect(op.get_bind())
    if not found.has_table(table):
        return True
    if kind == "table":
        return False
    things = found.get_columns(table) if kind == "column" else found.get_indexes(table)
    return name not in {each["name"] for each in things}


def create_table(name, *columns, **options):
    if missing("table", name):
        op.create_table(name, *columns, **options, **OPTIONS)
    elif not is_settled(name):
        settle(name)


def create_index(name, table, columns, **options):
    if missing("index", table, name):
        op.create_index(name, table, columns, **options)


def is_settled(table):
    """Whether *table*, which is there, is as OPTIONS say, on MariaDB and MySQL."""
    if op.get_context().dialect.name not in ("mysql", "mariadb"):
        return True
    if context.is_offline_mode():
        return False
    found = op.get_bind().execute(
        sa.text(
            "SELECT engine, row_format, table_collation FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_name = :name"
        ),
        {"name": table},
    )
    return [each.lower() for each in found.first()] == ["innodb", "dynamic", "utf8mb4_bin"]


def settle(table):
    op.execute(
        "ALTER TABLE %s ENGINE = InnoDB, ROW_FORMAT = DYNAMIC,"
        " CONVERT TO CHARACTER SET utf8mb4 COLLATE utf8mb4_bin" % table
    )


def settle_version():
    """Alembic made its table by the server's defaults, whose collation another server may not know."""
    if not is_settled("legacy_poll_version"):
        settle("legacy_poll_version")


def upgrade():
    settle_version()
    dialect = op.get_context().dialect.name
    now = sa.text(NOW[dialect])
    create_table(
        "legacy_poll_outbox",
        sa.Column("id", BIG, sa.Identity(), primary_key=True, autoincrement=True),
        sa.Column("event_id", sa.Text),
        sa.Column("channel", sa.Text),
        sa.Column("type", sa.Text),
        sa.Column("data", LONG),
        sa.Column("created_at", TIME, server_default=now),
        sqlite_autoincrement=True,
    )
    create_table(
        "legacy_poll_event",
        sa.Column("position", BIG, primary_key=True, autoincrement=False),
        sa.Column("id", sa.String(100), nullable=False),
        sa.Column("channel", sa.String(200), nullable=False),
        sa.Column("type", sa.String(200), nullable=False),
        sa.Column("data", LONG, nullable=False),
        sa.Column("published_at", sa.String(24), nullable=False),
    )
    create_index("legacy_poll_event_channel", "legacy_poll_event", ["channel", "position"])
    create_index("legacy_poll_event_id", "legacy_poll_event", ["id"])
    create_table(
        "legacy_poll_log",
        sa.Column("log_id", sa.String(36), primary_key=True),
        sa.Column("head", sa.BigInteger, nullable=False),
        sa.Column("oldest", sa.BigInteger, nullable=False),
    )
    # Before the next table: so a log without its row tells of an upgrade that ended here only while there is none.
    if context.is_offline_mode():
        # A script may be run on many databases, and each needs a log of its own.
        op.execute(
            "INSERT INTO legacy_poll_log (log_id, head, oldest) SELECT %s, 0, 1"
            % {
                "postgresql": "md5(random()::text || clock_timestamp()::text)",
                "mysql": "UUID()",
                "mariadb": "UUID()",
                "sqlite": "lower(hex(randomblob(16)))",
            }[dialect]
        )
    else:
        log = sa.table("legacy_poll_log", sa.column("log_id"), sa.column("head"), sa.column("oldest"))
        if op.get_bind().execute(sa.select(log.c.head)).first() is None:
            op.bulk_insert(log, [{"log_id": str(uuid.uuid4()), "head": 0, "oldest": 1}])
    create_table(
        "legacy_poll_set_aside",
        sa.Column("id", BIG, sa.Identity(), primary_key=True, autoincrement=True),
        sa.Column("outbox_id", sa.BigInteger),
        sa.Column("event_id", sa.Text),
        sa.Column("channel", sa.Text),
        sa.Column("type", sa.Text),
        sa.Column("data", LONG),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_at", TIME),
        sa.Column("set_aside_at", TIME, server_default=now),
        sqlite_autoincrement=True,
    )
    create_table(
        "legacy_poll_setting",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    if dialect == "sqlite":
        op.execute(sa.DDL(TRIGGER.replace("%", "%%")))


def downgrade():
    for name in ("setting", "set_aside", "log", "event", "outbox"):
        op.drop_table("legacy_poll_" + name)
