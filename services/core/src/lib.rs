//! The core service: it registers jobs that no worker has taken, keeps the catalogue, answers
//! the control requests, and mends what crashes left.
//!
//! Nothing here is on the way of a job that a worker takes at once. Several cores may run: each
//! answers control requests, and one, elected by a lease, does what one must do.
//!
//! | part | what it does |
//! |---|---|
//! | [`leader`] | elects |
//! | [`registrar`] | reads what is new in the streams and makes the records nobody made |
//! | [`reconciler`] | wakes who waited long enough, mends, deletes what has no purpose |
//! | [`catalogue`], [`consumers`] | who is registered, and the consumers of their queues |
//! | [`limits`] | writes the limits of the configuration where workers read them |
//! | [`lost`] | remembers workers whose lease ran out |
//! | [`silent`] | says that what runs on a silent host is unknown |
//! | [`control`] | the requests `virtbus.>` |

pub mod catalogue;
pub mod config;
pub mod consumers;
pub mod control;
pub mod domains;
pub mod leader;
pub mod limits;
pub mod lost;
pub mod reconciler;
pub mod registrar;
pub mod service;
pub mod silent;
