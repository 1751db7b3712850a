//! What the kernel's marks keep of a session.

/// How far a session has come: what is known of it when nobody remembers its dialogue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Progress {
    /// Nothing is known.
    #[default]
    Unknown,
    /// The server has sent its greeting, and the client commands of FTP.
    Ftp,
    /// And the server has let a user in.
    LoggedIn,
    /// Nothing more can be read: it is encrypted, or it is not FTP.
    Unreadable,
}

/// Which ends of a session are in step when it is picked up: all that they sent was read, and their next byte begins a
/// line, the server's one that begins a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct InStep {
    /// The client.
    pub client: bool,
    /// The server.
    pub server: bool,
}
