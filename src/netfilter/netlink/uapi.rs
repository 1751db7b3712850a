//! Constants of the kernel's headers (`include/uapi/linux`), under their own names. The comment above each group names
//! the header.

// linux/netlink.h, linux/in.h
pub(super) const IPPROTO_TCP: u8 = 6;
pub(super) const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_MULTI: u16 = 2;
pub(super) const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_DUMP_INTR: u16 = 16;
pub(super) const NLM_F_DUMP: u16 = 0x300;
pub(super) const NLM_F_EXCL: u16 = 0x200;
pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
pub(super) const NLA_F_NESTED: u16 = 0x8000;
/// Without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
pub(super) const NLA_TYPE_MASK: u16 = 0x3fff;
/// Also the length of an attribute's header.
pub(super) const NLA_ALIGNTO: usize = 4;
pub(super) const NLMSG_HDRLEN: usize = 16;

// linux/socket.h, linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h
pub(super) const AF_INET: u8 = 2;
pub(super) const AF_INET6: u8 = 10;
pub(super) const SOCK_DIAG_BY_FAMILY: u16 = 20;
pub(super) const INET_DIAG_NOCOOKIE: u32 = u32::MAX;
pub(super) const INET_DIAG_CGROUP_ID: u16 = 21;
pub(super) const TCP_SYN_SENT: u8 = 2;
pub(super) const TCP_LISTEN: u8 = 10;

// linux/netfilter.h
pub(super) const NFPROTO_INET: u8 = 1;
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;
pub(super) const NFPROTO_UNSPEC: u8 = 0;
pub(super) const NF_DROP: u32 = 0;
pub(super) const NF_ACCEPT: u32 = 1;
pub(super) const NF_QUEUE: u32 = 3;
pub(super) const NF_REPEAT: u32 = 4;
pub(super) const NF_VERDICT_FLAG_QUEUE_BYPASS: u32 = 0x8000;

// linux/netfilter/nfnetlink.h
pub(super) const NFNL_SUBSYS_CTNETLINK: u16 = 1;
pub(super) const NFNL_SUBSYS_CTNETLINK_EXP: u16 = 2;
pub(super) const NFNL_SUBSYS_QUEUE: u16 = 3;
pub(super) const NFNL_SUBSYS_CTHELPER: u16 = 9;
pub(super) const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub(super) const NFNL_MSG_BATCH_BEGIN: u16 = 16;
pub(super) const NFNL_MSG_BATCH_END: u16 = 17;
/// `struct nfgenmsg`: family, version, resource.
pub(super) const NFGENMSG_LEN: usize = 4;
pub(super) const NFNLGRP_CONNTRACK_NEW: u32 = 1;
pub(super) const NFNLGRP_CONNTRACK_DESTROY: u32 = 3;
pub(super) const NFNLGRP_NFTABLES: u32 = 7;
pub(super) const NFNLGRP_NFTRACE: u32 = 9;

// linux/netfilter/nf_tables.h: messages
pub(super) const NFT_MSG_NEWTABLE: u16 = 0;
pub(super) const NFT_MSG_GETTABLE: u16 = 1;
pub(super) const NFT_MSG_DELTABLE: u16 = 2;
pub(super) const NFT_MSG_NEWCHAIN: u16 = 3;
pub(super) const NFT_MSG_GETCHAIN: u16 = 4;
pub(super) const NFT_MSG_DELCHAIN: u16 = 5;
pub(super) const NFT_MSG_NEWRULE: u16 = 6;
pub(super) const NFT_MSG_GETRULE: u16 = 7;
pub(super) const NFT_MSG_DELRULE: u16 = 8;
pub(super) const NFT_MSG_NEWSET: u16 = 9;
pub(super) const NFT_MSG_GETSET: u16 = 10;
pub(super) const NFT_MSG_DELSET: u16 = 11;
pub(super) const NFT_MSG_NEWSETELEM: u16 = 12;
pub(super) const NFT_MSG_GETSETELEM: u16 = 13;
pub(super) const NFT_MSG_DELSETELEM: u16 = 14;
pub(super) const NFT_MSG_NEWOBJ: u16 = 18;
pub(super) const NFT_MSG_GETOBJ: u16 = 19;
pub(super) const NFT_MSG_DELOBJ: u16 = 20;
pub(super) const NFT_MSG_NEWFLOWTABLE: u16 = 22;
pub(super) const NFT_MSG_GETFLOWTABLE: u16 = 23;
/// Like `NFT_MSG_DELTABLE` and `NFT_MSG_DELSETELEM`, but no error where nothing is there. Since Linux 6.3.
pub(super) const NFT_MSG_DESTROYTABLE: u16 = 26;
pub(super) const NFT_MSG_DESTROYSETELEM: u16 = 30;

// linux/netfilter/nf_tables.h: tables, chains, rules
pub(super) const NFTA_TABLE_NAME: u16 = 1;
pub(super) const NFTA_TABLE_FLAGS: u16 = 2;
pub(super) const NFTA_TABLE_USERDATA: u16 = 6;
pub(super) const NFTA_TABLE_OWNER: u16 = 7;
/// Of `NFTA_TABLE_FLAGS`.
pub(super) const NFT_TABLE_F_OWNER: u32 = 2;
pub(super) const NFTA_CHAIN_TABLE: u16 = 1;
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
pub(super) const NFTA_CHAIN_HOOK: u16 = 4;
pub(super) const NFTA_CHAIN_POLICY: u16 = 5;
pub(super) const NFTA_CHAIN_TYPE: u16 = 7;
pub(super) const NFTA_CHAIN_FLAGS: u16 = 10;
pub(super) const NFTA_CHAIN_USERDATA: u16 = 12;
pub(super) const NFTA_HOOK_HOOKNUM: u16 = 1;
pub(super) const NFTA_HOOK_PRIORITY: u16 = 2;
pub(super) const NFTA_RULE_TABLE: u16 = 1;
pub(super) const NFTA_RULE_CHAIN: u16 = 2;
pub(super) const NFTA_RULE_HANDLE: u16 = 3;
pub(super) const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub(super) const NFTA_RULE_COMPAT: u16 = 5;
pub(super) const NFTA_RULE_USERDATA: u16 = 7;
pub(super) const NFTA_RULE_COMPAT_PROTO: u16 = 1;
pub(super) const NFTA_RULE_COMPAT_FLAGS: u16 = 2;
/// The comment among the userdata of a rule: libnftnl/udata.h.
pub(super) const NFTNL_UDATA_RULE_COMMENT: u8 = 0;
pub(super) const NFTA_LIST_ELEM: u16 = 1;

// linux/netfilter/nf_tables.h: traces
pub(super) const NFT_MSG_TRACE: u16 = 17;
/// The table belongs to the socket that adds it. Since Linux 5.12.
pub(super) const NFTA_TRACE_TABLE: u16 = 1;
pub(super) const NFTA_TRACE_CHAIN: u16 = 2;
pub(super) const NFTA_TRACE_RULE_HANDLE: u16 = 3;
pub(super) const NFTA_TRACE_TYPE: u16 = 4;
pub(super) const NFTA_TRACE_VERDICT: u16 = 5;
pub(super) const NFTA_TRACE_ID: u16 = 6;
pub(super) const NFTA_TRACE_POLICY: u16 = 16;
pub(super) const NFT_TRACETYPE_POLICY: u32 = 1;
pub(super) const NFTA_PAYLOAD_BASE: u16 = 2;
pub(super) const NFTA_PAYLOAD_OFFSET: u16 = 3;
pub(super) const NFTA_PAYLOAD_LEN: u16 = 4;
pub(super) const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
pub(super) const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
pub(super) const NFT_META_NFTRACE: u32 = 12;
pub(super) const NFT_META_NFPROTO: u32 = 15;
pub(super) const NFT_META_L4PROTO: u32 = 16;

// linux/netfilter/nf_tables.h: sets and their elements
pub(super) const NFTA_SET_TABLE: u16 = 1;
pub(super) const NFTA_SET_NAME: u16 = 2;
pub(super) const NFTA_SET_FLAGS: u16 = 3;
pub(super) const NFTA_SET_KEY_TYPE: u16 = 4;
pub(super) const NFTA_SET_KEY_LEN: u16 = 5;
pub(super) const NFTA_SET_DATA_TYPE: u16 = 6;
pub(super) const NFTA_SET_DATA_LEN: u16 = 7;
pub(super) const NFTA_SET_POLICY: u16 = 8;
pub(super) const NFTA_SET_DESC: u16 = 9;
pub(super) const NFTA_SET_DESC_SIZE: u16 = 1;
pub(super) const NFTA_SET_ID: u16 = 10;
pub(super) const NFTA_SET_TIMEOUT: u16 = 11;
pub(super) const NFTA_SET_GC_INTERVAL: u16 = 12;
pub(super) const NFTA_SET_USERDATA: u16 = 13;
pub(super) const NFTA_SET_OBJ_TYPE: u16 = 15;
pub(super) const NFTA_SET_EXPR: u16 = 17;
pub(super) const NFTA_SET_EXPRESSIONS: u16 = 18;
pub(super) const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
pub(super) const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub(super) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
pub(super) const NFTA_SET_ELEM_KEY: u16 = 1;
pub(super) const NFTA_SET_ELEM_DATA: u16 = 2;
pub(super) const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
pub(super) const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
pub(super) const NFTA_SET_ELEM_KEY_END: u16 = 10;
pub(super) const NFTA_SET_ELEM_EXPRESSIONS: u16 = 11;
pub(super) const NFTA_COUNTER_PACKETS: u16 = 2;
pub(super) const NFT_SET_ANONYMOUS: u32 = 1;
pub(super) const NFT_SET_CONSTANT: u32 = 2;
pub(super) const NFT_SET_TIMEOUT: u32 = 16;

// linux/netfilter/nf_tables.h: objects
pub(super) const NFTA_OBJ_TABLE: u16 = 1;
pub(super) const NFTA_OBJ_NAME: u16 = 2;
pub(super) const NFTA_OBJ_TYPE: u16 = 3;
pub(super) const NFTA_OBJ_DATA: u16 = 4;
pub(super) const NFTA_OBJ_USERDATA: u16 = 8;
pub(super) const NFTA_CT_HELPER_NAME: u16 = 1;
pub(super) const NFTA_CT_HELPER_L3PROTO: u16 = 2;
pub(super) const NFTA_CT_HELPER_L4PROTO: u16 = 3;
pub(super) const NFTA_CT_EXPECT_L3PROTO: u16 = 1;
pub(super) const NFTA_CT_EXPECT_L4PROTO: u16 = 2;
pub(super) const NFTA_CT_EXPECT_DPORT: u16 = 3;
pub(super) const NFTA_CT_EXPECT_TIMEOUT: u16 = 4;
pub(super) const NFTA_CT_EXPECT_SIZE: u16 = 5;
pub(super) const NFT_OBJECT_CT_HELPER: u32 = 3;
pub(super) const NFT_OBJECT_CT_EXPECT: u32 = 9;
pub(super) const NFTA_OBJREF_IMM_TYPE: u16 = 1;
pub(super) const NFTA_OBJREF_IMM_NAME: u16 = 2;

// linux/netfilter/nf_tables.h and nf_tables_compat.h: expressions
pub(super) const NFTA_EXPR_NAME: u16 = 1;
pub(super) const NFTA_EXPR_DATA: u16 = 2;
pub(super) const NFTA_DATA_VALUE: u16 = 1;
pub(super) const NFTA_DATA_VERDICT: u16 = 2;
pub(super) const NFTA_VERDICT_CODE: u16 = 1;
pub(super) const NFTA_IMMEDIATE_DREG: u16 = 1;
pub(super) const NFTA_IMMEDIATE_DATA: u16 = 2;
pub(super) const NFTA_CT_DREG: u16 = 1;
pub(super) const NFTA_CT_KEY: u16 = 2;
pub(super) const NFTA_CT_SREG: u16 = 4;
pub(super) const NFTA_META_DREG: u16 = 1;
pub(super) const NFTA_META_KEY: u16 = 2;
pub(super) const NFTA_META_SREG: u16 = 3;
pub(super) const NFTA_BITWISE_SREG: u16 = 1;
pub(super) const NFTA_BITWISE_DREG: u16 = 2;
pub(super) const NFTA_BITWISE_LEN: u16 = 3;
pub(super) const NFTA_BITWISE_MASK: u16 = 4;
pub(super) const NFTA_BITWISE_XOR: u16 = 5;
pub(super) const NFTA_BITWISE_OP: u16 = 6;
pub(super) const NFTA_CMP_SREG: u16 = 1;
pub(super) const NFTA_CMP_OP: u16 = 2;
pub(super) const NFTA_CMP_DATA: u16 = 3;
pub(super) const NFTA_RANGE_SREG: u16 = 1;
pub(super) const NFTA_LOOKUP_SREG: u16 = 2;
pub(super) const NFTA_LOOKUP_DREG: u16 = 3;
pub(super) const NFTA_DYNSET_SREG_KEY: u16 = 4;
pub(super) const NFTA_PAYLOAD_DREG: u16 = 1;
pub(super) const NFTA_PAYLOAD_SREG: u16 = 5;
pub(super) const NFTA_EXTHDR_DREG: u16 = 1;
pub(super) const NFTA_EXTHDR_OFFSET: u16 = 3;
pub(super) const NFTA_EXTHDR_LEN: u16 = 4;
pub(super) const NFTA_EXTHDR_FLAGS: u16 = 5;
pub(super) const NFTA_EXTHDR_SREG: u16 = 7;
pub(super) const NFTA_BYTEORDER_SREG: u16 = 1;
pub(super) const NFTA_BYTEORDER_DREG: u16 = 2;
pub(super) const NFTA_BYTEORDER_OP: u16 = 3;
pub(super) const NFTA_BYTEORDER_LEN: u16 = 4;
pub(super) const NFTA_BYTEORDER_SIZE: u16 = 5;
pub(super) const NFTA_HASH_SREG: u16 = 1;
pub(super) const NFTA_HASH_DREG: u16 = 2;
pub(super) const NFTA_NG_DREG: u16 = 1;
pub(super) const NFTA_RT_DREG: u16 = 1;
pub(super) const NFTA_FIB_DREG: u16 = 1;
pub(super) const NFTA_SOCKET_DREG: u16 = 2;
pub(super) const NFTA_QUEUE_NUM: u16 = 1;
pub(super) const NFTA_QUEUE_TOTAL: u16 = 2;
pub(super) const NFTA_QUEUE_FLAGS: u16 = 3;
pub(super) const NFTA_TARGET_NAME: u16 = 1;
pub(super) const NFTA_TARGET_REV: u16 = 2;
pub(super) const NFTA_TARGET_INFO: u16 = 3;
pub(super) const NFTA_MATCH_NAME: u16 = 1;
pub(super) const NFTA_MATCH_REV: u16 = 2;
pub(super) const NFTA_MATCH_INFO: u16 = 3;
pub(super) const NFT_REG_VERDICT: u32 = 0;
pub(super) const NFT_REG_1: u32 = 1;
pub(super) const NFT_CT_STATE: u32 = 0;
pub(super) const NFT_CT_MARK: u32 = 3;
pub(super) const NFT_META_MARK: u32 = 3;
pub(super) const NFT_BITWISE_BOOL: u32 = 0;
pub(super) const NFT_CMP_EQ: u32 = 0;
pub(super) const NFT_CMP_NEQ: u32 = 1;
pub(super) const NFT_CMP_GTE: u32 = 5;
pub(super) const NFT_BYTEORDER_HTON: u32 = 1;
pub(super) const NFT_META_TIME_NS: u32 = 30;
pub(super) const NFT_QUEUE_FLAG_BYPASS: u16 = 1;
pub(super) const NFT_QUEUE_FLAG_CPU_FANOUT: u16 = 2;

// linux/netfilter/nf_conntrack_common.h and nf_conntrack_tcp.h
pub(super) const IPS_EXPECTED: u32 = 1;
/// `NF_CT_STATE_BIT` of `IP_CT_ESTABLISHED`, `IP_CT_RELATED` and `IP_CT_NEW`.
pub(super) const NF_CT_STATE_ESTABLISHED: u32 = 2;
pub(super) const NF_CT_STATE_RELATED: u32 = 4;
pub(super) const NF_CT_STATE_NEW: u32 = 8;
pub(super) const TCP_CONNTRACK_SYN_RECV: u8 = 2;
pub(super) const TCP_CONNTRACK_ESTABLISHED: u8 = 3;
pub(super) const IP_CT_TCP_FLAG_BE_LIBERAL: u8 = 8;

// linux/netfilter/nfnetlink_conntrack.h: connections
pub(super) const IPCTNL_MSG_CT_NEW: u16 = 0;
pub(super) const IPCTNL_MSG_CT_GET: u16 = 1;
pub(super) const IPCTNL_MSG_CT_DELETE: u16 = 2;
pub(super) const CTA_TUPLE_ORIG: u16 = 1;
pub(super) const CTA_TUPLE_REPLY: u16 = 2;
pub(super) const CTA_STATUS: u16 = 3;
pub(super) const CTA_PROTOINFO: u16 = 4;
pub(super) const CTA_HELP: u16 = 5;
pub(super) const CTA_TIMEOUT: u16 = 7;
pub(super) const CTA_MARK: u16 = 8;
pub(super) const CTA_COUNTERS_ORIG: u16 = 9;
pub(super) const CTA_COUNTERS_REPLY: u16 = 10;
pub(super) const CTA_COUNTERS_BYTES: u16 = 2;
pub(super) const CTA_ID: u16 = 12;
pub(super) const CTA_ZONE: u16 = 18;
pub(super) const CTA_SEQ_ADJ_ORIG: u16 = 15;
pub(super) const CTA_SEQ_ADJ_REPLY: u16 = 16;
pub(super) const CTA_MARK_MASK: u16 = 21;
pub(super) const CTA_TUPLE_IP: u16 = 1;
pub(super) const CTA_TUPLE_PROTO: u16 = 2;
pub(super) const CTA_TUPLE_ZONE: u16 = 3;
pub(super) const CTA_IP_V4_SRC: u16 = 1;
pub(super) const CTA_IP_V4_DST: u16 = 2;
pub(super) const CTA_IP_V6_SRC: u16 = 3;
pub(super) const CTA_IP_V6_DST: u16 = 4;
pub(super) const CTA_PROTO_NUM: u16 = 1;
pub(super) const CTA_PROTO_SRC_PORT: u16 = 2;
pub(super) const CTA_PROTO_DST_PORT: u16 = 3;
pub(super) const CTA_PROTOINFO_TCP: u16 = 1;
pub(super) const CTA_PROTOINFO_TCP_STATE: u16 = 1;
pub(super) const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL: u16 = 4;
pub(super) const CTA_PROTOINFO_TCP_FLAGS_REPLY: u16 = 5;
pub(super) const CTA_SEQADJ_CORRECTION_POS: u16 = 1;
pub(super) const CTA_SEQADJ_OFFSET_BEFORE: u16 = 2;
pub(super) const CTA_SEQADJ_OFFSET_AFTER: u16 = 3;
pub(super) const CTA_HELP_NAME: u16 = 1;

// linux/netfilter/nfnetlink_conntrack.h: expectations
pub(super) const IPCTNL_MSG_EXP_NEW: u16 = 0;
pub(super) const IPCTNL_MSG_EXP_GET: u16 = 1;
pub(super) const IPCTNL_MSG_EXP_DELETE: u16 = 2;
pub(super) const CTA_EXPECT_MASTER: u16 = 1;
pub(super) const CTA_EXPECT_TUPLE: u16 = 2;
pub(super) const CTA_EXPECT_MASK: u16 = 3;
pub(super) const CTA_EXPECT_TIMEOUT: u16 = 4;
pub(super) const CTA_EXPECT_HELP_NAME: u16 = 6;
pub(super) const CTA_EXPECT_NAT: u16 = 10;
pub(super) const CTA_EXPECT_FN: u16 = 11;
pub(super) const CTA_EXPECT_NAT_DIR: u16 = 1;
pub(super) const CTA_EXPECT_NAT_TUPLE: u16 = 2;

// linux/netfilter/nfnetlink_cthelper.h
pub(super) const NFNL_MSG_CTHELPER_NEW: u16 = 0;
pub(super) const NFNL_MSG_CTHELPER_GET: u16 = 1;
pub(super) const NFNL_MSG_CTHELPER_DEL: u16 = 2;
pub(super) const NFCTH_NAME: u16 = 1;
pub(super) const NFCTH_TUPLE: u16 = 2;
pub(super) const NFCTH_QUEUE_NUM: u16 = 3;
pub(super) const NFCTH_POLICY: u16 = 4;
pub(super) const NFCTH_PRIV_DATA_LEN: u16 = 5;
pub(super) const NFCTH_STATUS: u16 = 6;
pub(super) const NFCTH_TUPLE_L3PROTONUM: u16 = 1;
pub(super) const NFCTH_TUPLE_L4PROTONUM: u16 = 2;
pub(super) const NFCTH_POLICY_SET_NUM: u16 = 1;
pub(super) const NFCTH_POLICY_SET1: u16 = 2;
pub(super) const NFCTH_POLICY_NAME: u16 = 1;
pub(super) const NFCTH_POLICY_EXPECT_MAX: u16 = 2;
pub(super) const NFCTH_POLICY_EXPECT_TIMEOUT: u16 = 3;
pub(super) const NFCT_HELPER_STATUS_DISABLED: u32 = 0;
pub(super) const NFCT_HELPER_STATUS_ENABLED: u32 = 1;

// linux/netfilter/nfnetlink_queue.h
pub(super) const NFQNL_MSG_VERDICT: u16 = 1;
pub(super) const NFQNL_MSG_CONFIG: u16 = 2;
pub(super) const NFQA_VERDICT_HDR: u16 = 2;
pub(super) const NFQA_MARK: u16 = 3;
pub(super) const NFQA_PAYLOAD: u16 = 10;
pub(super) const NFQA_CFG_CMD: u16 = 1;
pub(super) const NFQA_CFG_MASK: u16 = 4;
pub(super) const NFQA_CFG_FLAGS: u16 = 5;
pub(super) const NFQNL_CFG_CMD_UNBIND: u8 = 2;
pub(super) const NFQA_CFG_F_FAIL_OPEN: u32 = 1;

// linux/filter.h, linux/bpf_common.h
pub(super) const BPF_LD: u16 = 0;
pub(super) const BPF_LDX: u16 = 1;
pub(super) const BPF_ALU: u16 = 4;
pub(super) const BPF_JMP: u16 = 5;
pub(super) const BPF_RET: u16 = 6;
pub(super) const BPF_MISC: u16 = 7;
pub(super) const BPF_W: u16 = 0;
pub(super) const BPF_H: u16 = 8;
pub(super) const BPF_IMM: u16 = 0;
pub(super) const BPF_ABS: u16 = 32;
pub(super) const BPF_IND: u16 = 64;
pub(super) const BPF_AND: u16 = 80;
pub(super) const BPF_JEQ: u16 = 16;
pub(super) const BPF_K: u16 = 0;
pub(super) const BPF_TAX: u16 = 0;
pub(super) const SKF_AD_OFF: u32 = 0xfffff000;
pub(super) const SKF_AD_NLATTR: u32 = 12;
pub(super) const SKF_AD_NLATTR_NEST: u32 = 16;
