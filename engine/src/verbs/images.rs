//! Taking images away: never from under a container.
//!
//! No container is created while this looks for the users of an image and removes it, so that none can be made of an image that is
//! just going. An image that is taken by force from containers that do not run loses its names, and is kept for them until they
//! are gone.

use image_unpack::{Digest, Reference, Removed, Summary};

use crate::model::Container;
use crate::{Engine, EngineError, truth};

/// Digits of an id in a message.
const SHORT_ID: usize = 12;

impl Engine {
    /// The containers that are made of an image.
    ///
    /// # Errors
    /// The state database cannot be read.
    pub fn users_of_image(&self, id: Digest) -> Result<Vec<Container>, EngineError> {
        let id = id.to_string();
        Ok(self.containers()?.into_iter().filter(|container| container.config.image_id == id).collect())
    }

    /// Takes a name from an image, and the image away with its last name; by its id, all names at once if `force` says so.
    ///
    /// # Errors
    /// There is no such image; a container that runs is made of it; without `force`, one that does not run is, or it has
    /// several names and is named by its id.
    pub fn remove_image(&self, name: &str, force: bool) -> Result<Removed, EngineError> {
        let _alone = truth::alone(self.paths())?;
        self.forget_gone_holders()?;
        let failed = |source| image_error(name, source);
        let store = self.images();
        let image = store.find(name).map_err(failed)?;
        let all = store.images().map_err(failed)?;
        let names = all.into_iter().find(|summary| summary.id == image.id).map(|summary| summary.names);
        let names: Vec<Reference> = names.unwrap_or_default();
        let by_name = image.reference.filter(|reference| names.contains(reference));
        let last = names.len() <= 1;
        if let Some(reference) = by_name.as_ref().filter(|_| !last) {
            return store.untag(reference).map_err(failed);
        }
        let conflict = |what: String| Err(EngineError::Conflict(format!("conflict: {what}")));
        if by_name.is_none() && !last && !force {
            return conflict(format!(
                "unable to delete {} (must be forced) - image is referenced in multiple repositories",
                short(&image.id.hex())
            ));
        }
        let users = self.users_of_image(image.id)?;
        let running = users.iter().find(|user| user.state.status.is_running());
        if let Some(user) = running.or(users.first().filter(|_| !force)) {
            let what = match &by_name {
                Some(reference) => format!("remove repository reference \"{}\"", reference.familiar()),
                None => format!("delete {}", short(&image.id.hex())),
            };
            let (must, state) = if running.is_some() { ("cannot", "running") } else { ("must", "stopped") };
            return conflict(format!(
                "unable to {what} ({must} be forced) - image is being used by {state} container {}",
                short(&user.id)
            ));
        }
        for user in &users {
            store.hold(image.id, &user.id).map_err(failed)?;
        }
        store.remove(image.id, true).map_err(failed)
    }

    /// Removes the images that `accept` accepts and that no container is made of, and what broken pulls left behind.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn prune_images(&self, accept: impl Fn(&Summary) -> bool) -> Result<Removed, EngineError> {
        let _alone = truth::alone(self.paths())?;
        self.forget_gone_holders()?;
        let failed = |source| image_error("store", source);
        let store = self.images();
        let mut total = Removed::default();
        for image in store.images().map_err(failed)? {
            if accept(&image) && self.users_of_image(image.id)?.is_empty() {
                add(&mut total, store.remove(image.id, true).map_err(failed)?);
            }
        }
        add(&mut total, store.prune(false).map_err(failed)?);
        Ok(total)
    }

    /// Lets go of what was kept for containers that are gone.
    fn forget_gone_holders(&self) -> Result<(), EngineError> {
        let failed = |source| image_error("store", source);
        for holder in self.images().holds().map_err(failed)?.into_keys() {
            if matches!(self.database().container(&holder), Err(EngineError::NoContainer(_))) {
                self.images().release(&holder).map_err(failed)?;
            }
        }
        Ok(())
    }
}

fn image_error(name: &str, source: image_unpack::Error) -> EngineError {
    match source {
        image_unpack::Error::NotFound { .. } => EngineError::NoImage(name.to_owned()),
        source => EngineError::Image { name: name.to_owned(), source: Box::new(source) },
    }
}

fn add(total: &mut Removed, more: Removed) {
    total.untagged.extend(more.untagged);
    total.deleted.extend(more.deleted);
    total.freed = total.freed.saturating_add(more.freed);
}

fn short(id: &str) -> &str {
    id.get(..SHORT_ID).unwrap_or(id)
}
