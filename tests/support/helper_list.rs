//! The kernel's list of helpers. A machine has one: a test locks it, and leaves it as it was.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use lab::{Finished, Namespace};
use pinhole::core::policy::Policy;
use pinhole::netfilter::backend::native::{self, HelperError};
use pinhole::netfilter::netlink::{self, CtExpectation, Expectations, Helpers};

use crate::daemon::{self, Daemon, TIMEOUT, new_folder, service, write_policy};

/// No test of this file runs beside another.
static MACHINE: Mutex<()> = Mutex::new(());

/// The machine for oneself, if its kernel can do it.
pub(crate) fn machine() -> Option<MutexGuard<'static, ()>> {
    let guard = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    match native::is_possible(&Policy::embedded()) {
        Ok(()) => Some(guard),
        Err(HelperError::NoHelpers) if daemon::mechanism() != "native" => {
            // Then the test checks that Pinhole reports it.
            lab::kernel_lacks("helpers of programs (nfnetlink_cthelper)");
            let error = refused_start();
            assert!(error.contains("`mechanism: native` is not possible: this kernel takes no helpers"), "{error}");
            assert!(error.contains("modprobe nfnetlink_cthelper"), "{error}");
            None
        }
        Err(why) => panic!("this run is for native: {why}"),
    }
}

/// The output of a daemon whose policy demands `native`, where that does not work.
pub(crate) fn refused_start() -> String {
    let namespace = Namespace::new("alone").expect("a namespace");
    let finished = run_briefly(&namespace, "mechanism: native\n");
    assert!(!finished.status.success(), "{}", finished.output());
    assert!(!namespace.nft_output(&["list", "ruleset"]).expect("nft runs").contains("pinhole"), "something is left");
    finished.output()
}

/// The service with a policy that it cannot do.
pub(crate) fn run_briefly(namespace: &Namespace, policy: &str) -> Finished {
    let folder = new_folder();
    write_policy(&folder, policy);
    let finished = service(namespace, &folder, "info").spawn().and_then(|child| child.wait(TIMEOUT));
    std::fs::remove_dir_all(&folder).expect("it was made");
    finished.expect("it ends")
}

pub(crate) fn start(namespace: &Namespace, policy: &str) -> Daemon {
    Daemon::start(namespace, &format!("mechanism: native\n{policy}")).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn expected(firewall: &Namespace) -> Vec<CtExpectation> {
    let list = || Expectations::open(TIMEOUT).and_then(|mut all| all.list());
    firewall.run(list).expect("root may enter").expect("a list")
}

/// Daemons that were killed have left the helper, and the kernel takes its time with their namespaces.
pub(crate) fn wait_for_no_helper() -> Helpers {
    let mut helpers = Helpers::open(TIMEOUT).expect("root");
    lab::wait_until("no helper", TIMEOUT, || {
        for network in [netlink::Family::Ip, netlink::Family::Ip6] {
            // As long as something names it, it stays.
            let _ = helpers.remove("ftp", network);
        }
        Ok(helpers.list().expect("a list").is_empty())
    })
    .unwrap_or_else(|error| panic!("{error}"));
    helpers
}
