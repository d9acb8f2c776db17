//! The one match from the file system's errors to errno. No wildcard: a new error must say here what it is.

use std::io;

use fuser::Errno;

use crate::fs::api::FsError;

/// The errno that a caller gets.
#[expect(clippy::match_same_arms, reason = "each error stands with its own reason")]
pub(super) fn errno(error: &FsError) -> Errno {
    Errno::from_i32(match error {
        FsError::Denied => libc::EACCES,
        FsError::NotPermitted => libc::EPERM,
        FsError::KeyRevoked => libc::EKEYREVOKED,
        FsError::NoKey => libc::ENOKEY,
        // What a block layer says of a checksum that does not fit (fs-verity does the same of a page).
        FsError::Tampered => libc::EBADMSG,
        FsError::Corrupt => libc::EUCLEAN,
        FsError::NotFound => libc::ENOENT,
        FsError::Exists => libc::EEXIST,
        FsError::NotDir => libc::ENOTDIR,
        FsError::IsDir => libc::EISDIR,
        FsError::NotEmpty => libc::ENOTEMPTY,
        FsError::NameTooLong => libc::ENAMETOOLONG,
        FsError::TooLarge => libc::EFBIG,
        FsError::CrossTable => libc::EXDEV,
        FsError::TooManyLinks => libc::EMLINK,
        FsError::Stale => libc::ESTALE,
        FsError::Invalid => libc::EINVAL,
        FsError::BadHandle => libc::EBADF,
        FsError::NotSupported => libc::EOPNOTSUPP,
        FsError::NoAttribute => libc::ENODATA,
        FsError::Range => libc::ERANGE,
        FsError::ReadOnly => libc::EROFS,
        FsError::Busy => libc::EBUSY,
        // A rename onto a policy that does not parse: for EINVAL mv(1) would tell of a directory moved into itself,
        // and for EXDEV it would copy.
        FsError::Refused => libc::EBADMSG,
        FsError::NoDevice => libc::ENXIO,
        FsError::Executed => libc::ETXTBSY,
        FsError::Io(error) => of_io(error),
    })
}

/// The store's own errno, where a caller may see it.
fn of_io(error: &io::Error) -> i32 {
    match error.raw_os_error() {
        // The kernel takes ENOSYS for 'never ask this again', whatever the store meant by it.
        Some(libc::ENOSYS) => libc::EOPNOTSUPP,
        // Of a dead store; the caller would take the mount for dead.
        Some(libc::ENOTCONN | libc::ENODEV) => libc::EIO,
        // The kernel refuses a reply with any other number (fuse_dev_do_write), and the caller would wait for ever.
        Some(number @ 1..512) => number,
        Some(_) | None => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(error: impl Into<FsError>) -> i32 {
        errno(&error.into()).code()
    }

    #[test]
    fn the_store_s_errno_reaches_the_caller() {
        assert_eq!(number(io::Error::from_raw_os_error(libc::ENOSPC)), libc::ENOSPC);
        assert_eq!(number(io::Error::from_raw_os_error(libc::EDQUOT)), libc::EDQUOT);
        assert_eq!(number(io::Error::other("no number")), libc::EIO);
    }

    #[test]
    fn no_errno_of_the_store_changes_what_the_kernel_does() {
        for (raw, given) in
            [(libc::ENOSYS, libc::EOPNOTSUPP), (libc::ENOTCONN, libc::EIO), (512, libc::EIO), (-5, libc::EIO)]
        {
            assert_eq!(number(io::Error::from_raw_os_error(raw)), given, "{raw}");
        }
    }

    #[test]
    fn denials_differ() {
        let of = [
            number(FsError::Denied),
            number(FsError::NotPermitted),
            number(FsError::KeyRevoked),
            number(FsError::NoKey),
            number(FsError::Tampered),
        ];
        assert_eq!(of, [libc::EACCES, libc::EPERM, libc::EKEYREVOKED, libc::ENOKEY, libc::EBADMSG]);
    }
}
