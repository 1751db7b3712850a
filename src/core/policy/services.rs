//! The ports of well-known services, which an announcement cannot open unless `data_ports` names them one by one.
//!
//! The list is for services that trust every host that reaches them, or that are common targets of attacks. It holds
//! no port of Linux's ephemeral range (32768-60999), from which clients and many servers take their data ports, and no
//! round number with which passive ranges like to begin (5000, 10000, 40000).

use super::terms::PortSet;
use crate::core::net::{Port, PortRange};

/// The default of `known_services`: from port, to port, what listens there.
pub(super) const DEFAULT: &[(u16, u16, &str)] = &[
    (1080, 1080, "SOCKS"),
    (1098, 1099, "Java RMI and JMX"),
    (1433, 1434, "Microsoft SQL Server"),
    (1521, 1521, "Oracle"),
    (1720, 1720, "H.323"),
    (1883, 1883, "MQTT"),
    (2049, 2049, "NFS"),
    (2181, 2181, "ZooKeeper"),
    (2375, 2377, "Docker and Swarm"),
    (2379, 2380, "etcd"),
    (3128, 3128, "Squid"),
    (3260, 3260, "iSCSI"),
    (3268, 3269, "Active Directory"),
    (3306, 3306, "MySQL"),
    (3389, 3389, "Remote Desktop"),
    (4369, 4369, "Erlang"),
    (4505, 4506, "Salt"),
    (4786, 4786, "Cisco Smart Install"),
    (5060, 5061, "SIP"),
    (5432, 5432, "PostgreSQL"),
    (5601, 5601, "Kibana"),
    (5672, 5672, "RabbitMQ"),
    (5900, 5909, "VNC"),
    (5984, 5986, "CouchDB and WinRM"),
    (6000, 6063, "X11"),
    (6379, 6380, "Redis"),
    (6443, 6443, "Kubernetes"),
    (7000, 7001, "Cassandra and WebLogic"),
    (7077, 7077, "Spark"),
    (7199, 7199, "Cassandra's JMX"),
    (7547, 7547, "TR-069"),
    (8009, 8009, "Tomcat's AJP"),
    (8080, 8080, "HTTP, mostly of administration"),
    (8086, 8086, "InfluxDB"),
    (8200, 8200, "Vault"),
    (8291, 8291, "WinBox"),
    (8443, 8443, "HTTPS, mostly of administration"),
    (8500, 8500, "Consul"),
    (9042, 9042, "Cassandra"),
    (9090, 9090, "Cockpit and Prometheus"),
    (9092, 9092, "Kafka"),
    (9100, 9100, "printers"),
    (9200, 9200, "Elasticsearch"),
    (9300, 9300, "Elasticsearch's nodes"),
    (10250, 10250, "Kubernetes' nodes"),
    (11211, 11211, "memcached"),
    (15672, 15672, "RabbitMQ's administration"),
    (27017, 27019, "MongoDB"),
    (61613, 61616, "ActiveMQ"),
];

/// The default of `known_services`.
pub(super) fn default_set() -> PortSet {
    let range = |&(first, last, _): &(u16, u16, &str)| PortRange::new(Port::new(first)?, Port::new(last)?);
    PortSet::new(DEFAULT.iter().filter_map(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_services_are_in_order_and_no_ephemeral_ports() {
        assert!(DEFAULT.is_sorted_by(|(_, last, _), (first, ..)| last < first));
        for (first, last, name) in DEFAULT {
            assert!(first <= last && *first >= 1024 && !name.is_empty(), "{name}");
            assert!(*last < 32_768 || *first > 60_999, "{name} is within the ephemeral range");
        }
    }

    #[test]
    fn policy_page_lists_every_known_service() {
        let page = include_str!("../../../docs/reference/policy.md");
        for (first, last, name) in DEFAULT {
            let ports = if first == last { first.to_string() } else { format!("{first}-{last}") };
            assert!(page.contains(&format!("| {ports} | {name} |")), "{name}");
        }
    }

    #[test]
    fn few_of_the_unprivileged_ports_are_closed() {
        let closed = (1024..=65_535).filter_map(Port::new).filter(|port| default_set().contains(*port)).count();
        assert!(closed < 160, "a server without a passive range would meet one of {closed} ports too often");
    }
}
