-- linewarden's inventory. Read the views tunnels, circuits, approvals and days; the tables below are how it is kept.
-- Times are RFC 3339 in UTC, which sort as text; octets are those of frames on the wire.

-- What is added up by itself, a tunnel under one approval on one path, of flows that ended. '' and port 0: none.
CREATE TABLE lanes (
    id INTEGER PRIMARY KEY,
    protocol TEXT NOT NULL, a TEXT NOT NULL, b TEXT NOT NULL, port INTEGER NOT NULL,
    approval TEXT NOT NULL, interface TEXT NOT NULL, vlan TEXT NOT NULL, mpls TEXT NOT NULL,
    flows INTEGER NOT NULL, first_seen TEXT NOT NULL, last_seen TEXT NOT NULL,
    packets_ab INTEGER NOT NULL, packets_ba INTEGER NOT NULL, octets_ab INTEGER NOT NULL, octets_ba INTEGER NOT NULL,
    confidence INTEGER NOT NULL, label TEXT NOT NULL, reason TEXT NOT NULL, owner TEXT NOT NULL, reference TEXT NOT NULL,
    policy_revision TEXT NOT NULL, flow_id TEXT NOT NULL,
    UNIQUE (protocol, a, b, port, approval, interface, vlan, mpls)
) STRICT;

-- Flows without an end, by their latest record.
CREATE TABLE open_flows (
    flow_id TEXT PRIMARY KEY, lane INTEGER NOT NULL,
    flows INTEGER NOT NULL, first_seen TEXT NOT NULL, last_seen TEXT NOT NULL,
    packets_ab INTEGER NOT NULL, packets_ba INTEGER NOT NULL, octets_ab INTEGER NOT NULL, octets_ba INTEGER NOT NULL,
    confidence INTEGER NOT NULL, label TEXT NOT NULL, reason TEXT NOT NULL, owner TEXT NOT NULL, reference TEXT NOT NULL,
    policy_revision TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Of flows that ended, by the day of their latest packet.
CREATE TABLE ended_days (
    lane INTEGER NOT NULL, day TEXT NOT NULL, flows INTEGER NOT NULL, octets_ab INTEGER NOT NULL, octets_ba INTEGER NOT NULL,
    PRIMARY KEY (lane, day)
) STRICT, WITHOUT ROWID;

-- One row: up to where in the log the inventory was told, what the last lines were that it took (their octets, SHA-256 and
-- where they end), and what it did not keep.
CREATE TABLE state (
    segment INTEGER NOT NULL, octets INTEGER NOT NULL,
    mark_segment INTEGER NOT NULL, mark_end INTEGER NOT NULL, mark_octets INTEGER NOT NULL, mark_sha256 BLOB NOT NULL,
    lines INTEGER NOT NULL, damaged INTEGER NOT NULL, left_out INTEGER NOT NULL, evicted INTEGER NOT NULL
) STRICT;
INSERT INTO state VALUES (0, 0, 0, 0, 0, x'', 0, 0, 0, 0);

CREATE VIEW seen AS
SELECT protocol, a, b, port, approval, interface, vlan, mpls, flows, 0 AS open_flows, first_seen, last_seen,
    packets_ab, packets_ba, octets_ab, octets_ba, confidence, label, reason, owner, reference, policy_revision, flow_id
FROM lanes WHERE flows > 0
UNION ALL
SELECT l.protocol, l.a, l.b, l.port, l.approval, l.interface, l.vlan, l.mpls, o.flows, 1, o.first_seen, o.last_seen,
    o.packets_ab, o.packets_ba, o.octets_ab, o.octets_ba, o.confidence, o.label, o.reason, o.owner, o.reference,
    o.policy_revision, o.flow_id
FROM open_flows AS o JOIN lanes AS l ON l.id = o.lane;

CREATE VIEW tunnels AS
SELECT protocol, a, b, nullif(port, 0) AS port, min(first_seen) AS first_seen, max(last_seen) AS last_seen,
    sum(flows) AS flows, sum(open_flows) AS open_flows,
    sum(packets_ab) AS packets_ab, sum(packets_ba) AS packets_ba, sum(octets_ab) AS octets_ab, sum(octets_ba) AS octets_ba,
    CASE max(confidence) WHEN 3 THEN 'certain' WHEN 2 THEN 'likely' WHEN 1 THEN 'possible' END AS confidence,
    max(CASE nth WHEN 1 THEN label END) AS label, max(CASE nth WHEN 1 THEN reason END) AS reason,
    nullif(max(CASE nth WHEN 1 THEN approval END), '') AS approval,
    max(CASE nth WHEN 1 THEN interface END) AS interface, nullif(max(CASE nth WHEN 1 THEN vlan END), '') AS vlan,
    max(CASE nth WHEN 1 THEN policy_revision END) AS policy_revision, max(CASE nth WHEN 1 THEN flow_id END) AS flow_id
FROM (
    SELECT *, row_number() OVER (PARTITION BY protocol, a, b, port ORDER BY last_seen DESC, flow_id DESC) AS nth
    FROM seen WHERE protocol <> ''
)
GROUP BY protocol, a, b, port;

CREATE VIEW circuits AS
SELECT approval, interface, nullif(vlan, '') AS vlan, nullif(mpls, '') AS mpls,
    max(CASE nth WHEN 1 THEN owner END) AS owner, max(CASE nth WHEN 1 THEN reference END) AS reference,
    min(first_seen) AS first_seen, max(last_seen) AS last_seen, sum(flows) AS flows, sum(open_flows) AS open_flows,
    sum(CASE protocol WHEN '' THEN flows ELSE 0 END) AS plain_flows,
    sum(packets_ab + packets_ba) AS packets, sum(octets_ab + octets_ba) AS octets
FROM (
    SELECT *, row_number() OVER (PARTITION BY approval, interface, vlan, mpls ORDER BY last_seen DESC, flow_id DESC) AS nth
    FROM seen WHERE approval <> ''
)
GROUP BY approval, interface, vlan, mpls;

CREATE VIEW approvals AS
SELECT approval, max(CASE nth WHEN 1 THEN owner END) AS owner, max(CASE nth WHEN 1 THEN reference END) AS reference,
    min(first_seen) AS first_used, max(last_seen) AS last_used, sum(flows) AS flows, sum(open_flows) AS open_flows,
    sum(packets_ab + packets_ba) AS packets, sum(octets_ab + octets_ba) AS octets,
    count(DISTINCT CASE protocol WHEN '' THEN NULL ELSE a || ' ' || b END) AS peers
FROM (
    SELECT *, row_number() OVER (PARTITION BY approval ORDER BY last_seen DESC, flow_id DESC) AS nth
    FROM seen WHERE approval <> ''
)
GROUP BY approval;

CREATE VIEW days AS
SELECT day, nullif(protocol, '') AS protocol, nullif(a, '') AS a, nullif(b, '') AS b, nullif(port, 0) AS port,
    nullif(approval, '') AS approval, sum(flows) AS flows, sum(octets_ab) AS octets_ab, sum(octets_ba) AS octets_ba
FROM (
    SELECT d.day, l.protocol, l.a, l.b, l.port, l.approval, d.flows, d.octets_ab, d.octets_ba
    FROM ended_days AS d JOIN lanes AS l ON l.id = d.lane
    UNION ALL
    SELECT substr(o.last_seen, 1, 10), l.protocol, l.a, l.b, l.port, l.approval, o.flows, o.octets_ab, o.octets_ba
    FROM open_flows AS o JOIN lanes AS l ON l.id = o.lane
)
GROUP BY day, protocol, a, b, port, approval;
